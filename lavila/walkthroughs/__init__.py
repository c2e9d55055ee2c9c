"""Series of commands on the sample dataset: `make quickstart`, `make learn`, `make loop` and `make demo` run them."""
