"""Graph passes: each one is a function of a captured graph, and knows no session, policy or file."""

if __name__ != "toprovar_compiler.passes":
    raise ImportError(
        f"requires the passes to be imported as 'toprovar_compiler.passes', got {__name__!r}; the folder "
        "'passes' at the repository root is a link for readers, import 'toprovar_compiler.passes' instead"
    )
