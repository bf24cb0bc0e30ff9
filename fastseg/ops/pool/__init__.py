"""Max-pooling and unpooling with compact codes, and batch norm with ReLU and pooling in one op."""
