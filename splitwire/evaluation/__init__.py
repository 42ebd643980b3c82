"""`splitwire evaluate`: accuracy against bytes, for splitwire and for what a user would send instead."""
