"""What controls and watches a running edge, measured: on a link that changes, on input that drifts."""
