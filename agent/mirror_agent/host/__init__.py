"""Floor 3: the host as it is.  Every effect on it, and every look at it, is in this package."""
