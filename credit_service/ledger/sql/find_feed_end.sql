-- Reads the boundary of the feed, as read_feed does: items with a lower number can be read now.
SELECT base + pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS boundary
FROM credit_feed_numbers
