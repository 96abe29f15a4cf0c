"""Real base models and adapters for the demo; tests/helpers/make_demo_data.py remakes them."""
