"""One model at a time: figures with intervals, over all and per slice, on a recipe's data, a mix or a harness."""
