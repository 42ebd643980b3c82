"""Bytes and times: of the codec, of a new process, of an export, beside peers and beside the last release."""
