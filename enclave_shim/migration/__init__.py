"""Moving one enclave: the two roles, and the threads that pump its pages."""
