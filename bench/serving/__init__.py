"""Load on a server that speaks OpenAI's API: clients that stream, leave and stall, and the scenarios made of them."""
