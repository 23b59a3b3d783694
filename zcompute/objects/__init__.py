"""The versioned data model: typed msgspec Structs without I/O. Imports nothing of ours."""
