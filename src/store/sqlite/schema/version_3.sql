CREATE INDEX events_of_cancellable ON events (id) WHERE kind IN ('question', 'cancellation');
