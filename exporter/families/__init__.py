"""One model family a module: its sizes, its weights, its graphs."""
