"""What the dashboards are made of; `generate.py` beside this package writes them."""
