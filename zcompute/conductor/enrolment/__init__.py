"""Who may join a cell: tokens, the keys that they let in, and the keyring that follows them."""
