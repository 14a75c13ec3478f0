"""What things cost, measured in one run: `make bench`. Nothing here is asserted."""
