"""How kernels are compiled, and where they are kept between processes."""
