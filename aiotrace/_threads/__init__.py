"""The host loop (asyncio, uvloop or trio) and threads of aiotrace's own."""
