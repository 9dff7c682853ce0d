"""What a step says about itself: the clock of its phases, and its warnings."""
