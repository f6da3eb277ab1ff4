"""What is minimised: pure functions of parameters and a batch."""
