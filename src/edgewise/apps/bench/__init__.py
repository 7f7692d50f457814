"""Tables of the field's articles, played again at a small scale with text that ships, beside the published figures."""
