"""Load models, score pairs with them, export and serve them."""
