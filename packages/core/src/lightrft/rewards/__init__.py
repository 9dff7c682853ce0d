"""What is a completion worth? Finding reward functions, calling them safely, and the built-in ones."""
