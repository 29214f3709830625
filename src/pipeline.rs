//! One delivery, from message to ack.
