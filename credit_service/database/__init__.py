"""PostgreSQL itself: connections, an embedded server, its programs, the migrations."""
