"""Vision-language models of the H2OVL-Mississippi shape, pictures to read, and how well they are read."""
