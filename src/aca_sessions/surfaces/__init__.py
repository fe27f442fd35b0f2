"""How people and models arrive. Thin: translate, call, translate back."""
