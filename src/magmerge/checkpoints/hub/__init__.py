"""Models on the Hugging Face hub: what of them is needed, fetched into its cache, or read there"""
