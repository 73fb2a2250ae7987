"""The book: lanes write it, everyone else reads it."""
