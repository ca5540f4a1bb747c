"""Models that read images: classifiers, and models that answer questions about images."""
