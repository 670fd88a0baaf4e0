"""GGUF files, as llama.cpp and ComfyUI-GGUF write them, under the names of transformers."""
