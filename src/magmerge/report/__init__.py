"""Results for people: tables of plans, records and differences."""
