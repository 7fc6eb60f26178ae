"""How fast, and at what price: the recipe's registry, distribution, a pod of ours and plain nginx, side by side."""
