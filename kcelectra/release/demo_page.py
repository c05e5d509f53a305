"""The page to try a model in the browser, Korean at `/` and English at `/en`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kcelectra.corpus.cleaning import RULE_SETS, clean
from kcelectra.errors import InputError
from kcelectra.release.demo import (
    MAX_CHARS,
    classify,
    compare_rules,
    corrupt,
    cut_comment,
    is_cut,
    judge,
    show_invisible,
    split_pieces,
)
from kcelectra.release.demo_model import TriedModel
from kcelectra.release.demo_words import WORDS

HERE = Path(__file__).parent
#: Constructed, so that each rule set has something to do.
EXAMPLES = (
    "이 영화 진짜 재밌어요 ㅋㅋㅋㅋㅋㅋㅋ 👍👍👍 부모님이랑 또 보고 싶네요!!!",
    "배터리가 10000원이라니;; 자세한 건 https://example.com/sale 참고하세요 ^^",
    "&lt;속보&gt; 내일 ＳＡＬＥ 시작 대박대박대박 ㅠㅠㅠㅠㅠ 漢字도 섞어 봄",
    "오늘 날씨 너무 좋다ㅎㅎㅎㅎ 산책하다가 고양이도 만났어요 🐈",
)
MAX_SEED = 2**31 - 1
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # a tokenizer is for one thread

_VIEWS = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
_VIEWS.filters["visible"] = show_invisible


def render_view(name: str, language: str, *rows: Any) -> str:
    """Return a part of the page in HTML; whatever is in the rows is text and never markup."""
    view = getattr(_VIEWS.get_template("demo.html.jinja").module, name)
    return str(view(WORDS[language], *rows))


def look_at(model: TriedModel, language: str, comment: str, rules: str) -> dict[str, Any]:
    """Return what the page shows of a comment.

    Args:
        model: that is tried.
        language: `ko` or `en`.
        comment: as it was pasted, of any length.
        rules: that clean it before the model reads it.

    Returns:
        HTML by the name of its part; `text`, what the model read; `words`, those of it, with their numbers.
    """
    looked_at = cut_comment(comment)
    text = clean(looked_at, rules)
    pieces = split_pieces(model, text)
    words: dict[int, str] = {}
    for piece in pieces:
        words[piece.word] = words.get(piece.word, "") + show_invisible(piece.text)
    return {
        "notices": render_view("notices", language, _find_notices(model, language, comment, text, rules)),
        "cleaned": render_view("cleaned", language, compare_rules(looked_at)),
        "pieces": render_view("pieces", language, pieces),
        "judged": render_view("judged", language, judge(model, text)),
        "answers": render_view("answers", language, classify(model, looked_at)),
        "corruption": "",
        "text": text,
        "words": [(word, number) for number, word in words.items()],
    }


def replace_in(model: TriedModel, language: str, text: str, words: Sequence[int], seed: int | None) -> str:
    """Return in HTML what the generator puts in the place of words of a text, and what the discriminator finds."""
    return render_view("corruption", language, *corrupt(model, text, words=words, seed=seed or 0))


def import_gradio() -> Any:
    """Return the module `gradio`.

    Raises:
        InputError: the extra `demo` is not installed.
    """
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise InputError(f'the page needs the extra "demo" ({error}); type: pip install -e ".[demo]"') from error
    return gradio


def build_page(model: TriedModel) -> Any:
    """Return the page, a `gradio.Blocks`.

    Raises:
        InputError: the extra `demo` is not installed.
    """
    gr = import_gradio()
    page = gr.Blocks(title=f"kcelectra: {model.name}", analytics_enabled=False)
    with page:
        _lay_out(gr, page, model, "ko")
    with page.route("English", "en"):
        _lay_out(gr, page, model, "en")
    return page


def launch_page(page: Any, *, port: int | None = None) -> None:
    """Serve a page until the process is interrupted; on this machine alone unless GRADIO_SERVER_NAME says otherwise.

    Nothing is loaded from another host, no tunnel is opened, and the browser keeps no history of comments.

    Args:
        page: what `build_page` made.
        port: the first free one from 7860 if None.

    Raises:
        InputError: the port is taken.
    """
    gr = import_gradio()
    fonts = {"font": [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]}
    fonts["font_mono"] = [gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")]
    try:
        page.launch(
            server_port=port,
            share=False,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            theme=gr.themes.Default(**fonts),
            css_paths=HERE / "demo.css",
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise InputError(f"cannot serve on port {port}: {error}; give another --port") from error
    print(f"Korean: {page.local_url}  English: {page.local_url}en", flush=True)  # noqa: T201
    page.block_thread()


def _find_notices(model: TriedModel, language: str, comment: str, text: str, rules: str) -> list[str]:
    words, lines = WORDS[language], []
    if len(comment) > MAX_CHARS:
        lines.append(words["cut"].format(chars=len(comment), limit=MAX_CHARS))
    if not comment.strip():
        lines.append(words["empty"])
    elif not text.strip():
        lines.append(words["all_removed"].format(rules=rules))
    if is_cut(model, text):
        lines.append(words["tokens_cut"])
    return lines


def _lay_out(gr: Any, page: Any, model: TriedModel, language: str) -> None:
    """Put the components of one language on a page, and connect them."""
    words = WORDS[language]
    gr.Navbar(main_page_name="한국어")
    gr.HTML(render_view("head", language, model.name))
    comment = gr.Textbox(EXAMPLES[0], label=words["comment"], placeholder=words["placeholder"], lines=3, max_lines=8)
    with gr.Row():
        names = [(words["no_rules"] if name == "none" else name, name) for name in RULE_SETS]
        rules = gr.Radio(names, value="v2022", label=words["rules"], scale=4, min_width=320)
        button = gr.Button(words["look"], variant="primary", min_width=160)
    examples = gr.Examples([[example] for example in EXAMPLES], [comment], label=words["examples"])
    shown = {"notices": gr.HTML(), "text": gr.State("")}
    with gr.Tabs():
        for name in ("cleaned", "pieces", "judged"):
            with gr.Tab(words[name]):
                shown[name] = gr.HTML()
        with gr.Tab(words["corruption"]):
            _lay_out_corruption(gr, model, language, shown)
        if model.classifiers:
            with gr.Tab(words["answers"]):
                shown["answers"] = gr.HTML()

    def look(comment: str, rules: str) -> dict[Any, Any]:
        parts = look_at(model, language, comment, rules)
        values = {component: parts[name] for name, component in shown.items() if name != "words"}
        if "words" in shown:
            values[shown["words"]] = gr.CheckboxGroup(choices=parts["words"], value=[])
        return values

    asked = {"inputs": [comment, rules], "outputs": list(shown.values()), **ONE_AT_A_TIME}
    gr.on([button.click, comment.submit, page.load], look, **asked, api_name=f"look_{language}")
    page.load(None, js=f"() => {{ document.documentElement.lang = '{language}' }}")
    examples.load_input_event.then(look, **asked, api_visibility="private")


def _lay_out_corruption(gr: Any, model: TriedModel, language: str, shown: dict[str, Any]) -> None:
    words = WORDS[language]
    if model.generator is None:
        gr.HTML(render_view("help", language, "no_generator"))
        return
    gr.HTML(render_view("help", language, "corruption_help"))
    shown["words"] = gr.CheckboxGroup([], label=words["words"])
    with gr.Row():
        seed = gr.Number(0, label=words["seed"], precision=0, minimum=0, maximum=MAX_SEED, min_width=160)
        button = gr.Button(words["replace"], variant="primary", min_width=160)
    shown["corruption"] = gr.HTML()
    button.click(
        partial(replace_in, model, language),
        [shown["text"], shown["words"], seed],
        shown["corruption"],
        **ONE_AT_A_TIME,
        api_name=f"replace_{language}",
    )
