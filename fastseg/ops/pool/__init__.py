"""Max-pooling and unpooling with compact codes, and batch norm, ReLU and pooling in one op."""
