//! Settings, read and checked at the door.
