"""`splitwire demo`: export, serve and run the demo network on real images, with measurements."""
