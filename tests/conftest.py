"""What tests of several rooms share."""

from __future__ import annotations

from hypothesis import settings

# Times vary on a busy machine, and the first example may compile a kernel. What failed is printed, to be tried again.
settings.register_profile("splitwire", deadline=None, print_blob=True)
settings.load_profile("splitwire")
