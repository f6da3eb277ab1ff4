"""seqio registrations: what is read, by name. Import the module whose Tasks a run names."""
