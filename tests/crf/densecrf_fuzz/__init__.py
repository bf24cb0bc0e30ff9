"""Random problems for the C++ core of the dense CRF, run under sanitizers."""
