"""Does the kit see what it is there for? Plugins with one planted fault each, and the one test that must fail of it."""
