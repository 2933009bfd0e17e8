"""What is in an answer's text: content, reasoning and tool calls, found while the text comes."""
