"""Long videos with captions: reading, sampling, and a generator of cartoons."""
