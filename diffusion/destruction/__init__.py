"""Forward processes that destroy a picture, noise schedules among them."""
