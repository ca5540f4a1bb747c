"""Training: the loop, its schedules, and the stage that trains a model from its data alone."""
