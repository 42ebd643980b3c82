"""What splitwire is compared with, one kind per module."""
