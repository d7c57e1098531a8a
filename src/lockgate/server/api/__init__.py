"""What the HTTP API says: routes by noun, and the view models that they answer with."""
