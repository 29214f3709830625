//! What every message of a network says: pure, no I/O.
