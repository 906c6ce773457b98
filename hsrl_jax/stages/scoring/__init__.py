"""What sessions are scored by, and pictures of them."""
