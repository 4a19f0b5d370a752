"""Getting events to the server: `fenced` decides, `producer` (threads) and `publisher` (trio) drive."""
