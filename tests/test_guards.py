import contextlib
import json
import random
import resource
from types import SimpleNamespace

import pytest
from datasets import Dataset

from pipeline.data import shown
from pipeline.data.tokens import encode_messages
from pipeline.models import tokenization
from pipeline.system.errors import UserError
from pipeline.training import guards, parents
from tests.conftest import mostly_slow

TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n%s{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TAGGED = "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}<|im_end|>"


@pytest.fixture
def tokenizer():
    return tokenization.train(["x"], 260, 64)


def encoded(tokenizer, body):
    tokenizer.chat_template = CHATML.replace("%s", body)
    return Dataset.from_list([encode_messages(TALK["messages"], tokenizer)])


def test_nothing_to_learn_from_stops():
    with pytest.raises(UserError, match=r"no row is left for training \(3 longer than max_length 8\)"):
        guards.learns(Dataset.from_dict({"labels": []}), {"longer than max_length 8": 3})
    with pytest.raises(UserError, match="every label is masked"):
        guards.learns(Dataset.from_dict({"labels": [[-100, -100]]}), {})


def test_an_end_token_that_is_not_learned_stops(tokenizer):
    dataset = encoded(tokenizer, TAGGED)  # the end token stands outside of the generation tags
    with pytest.raises(UserError, match=r"row 0: the answer's end token <\|im_end\|> is not a target"):
        guards.stops(dataset, tokenizer, tokenization.end_token(tokenizer))
    with pytest.raises(UserError, match="puts no special token after an answer"):
        guards.stops(dataset, tokenizer, None)
    whole = encoded(tokenizer, TAGGED.replace("{% endgeneration %}{% else %}", "<|im_end|>{% endgeneration %}{% else %}"))
    guards.stops(whole, tokenizer, 3)


ASKED = [{"role": "user", "content": "Whom did they see?"}, {"role": "assistant", "content": "The owl."}]
WHOLE = "{{ m['content'] }}<|im_end|>"


def shown_by(tokenizer, template):
    tokenizer.chat_template = template
    return shown.conversation(ASKED, tokenizer)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML.replace("%s", "{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>"), "drops or changes what the assistant says: 'The owl.'"),
        (CHATML.replace("%s", "{% if m['role'] != 'user' %}{{ m['content'] }}{% endif %}<|im_end|>"), "drops or changes what the user says"),
        (CHATML.replace("%s", "{{ m['content'] | upper }}<|im_end|>"), "drops or changes"),
        (CHATML.replace("%s", WHOLE).replace("<|im_start|>assistant\n", "bot:"), "generation asks with"),
        (CHATML.replace("%s", WHOLE).partition("{% if add_")[0], "add_generation_prompt adds nothing"),
        (CHATML.replace("%s", "{% generation %}" + WHOLE + "{% endgeneration %}"), "makes targets of what the user says"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML.replace("%s", WHOLE), "twice"),
    ],
)  # fmt: skip
def test_a_template_that_shows_what_is_not_asked_for_stops(tokenizer, template, said):
    with pytest.raises(UserError, match=f"chat_template: .*{said}"):
        shown_by(tokenizer, template)
    with pytest.raises(UserError, match="chat_template: ") if "targets" not in said else contextlib.nullcontext():
        shown.pair({"prompt": ASKED[:1], "chosen": ASKED[1:], "rejected": ASKED[1:]}, tokenizer)


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("%s", WHOLE),
        CHATML.replace("%s", "{{ m['content'] | trim }}<|im_end|>"),
        CHATML.replace("%s", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}" + WHOLE),  # of a model that reasons
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}<|im_end|>{% endif %}{% endfor %}",
    ],
)  # fmt: skip
def test_templates_as_models_have_them_pass(tokenizer, template):
    assert shown_by(tokenizer, template) == encode_messages(ASKED, tokenizer)


def test_a_tokenizer_that_changes_letters_passes(tokenizer):
    """A decomposed letter is composed and lower-cased by the tokenizer, not by the template."""
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.chat_template = CHATML.replace("%s", WHOLE)
    said = [ASKED[0], {"role": "assistant", "content": "The cafe\u0301."}]
    assert "The" not in tokenizer.decode(shown.conversation(said, tokenizer)["input_ids"])


def test_a_template_that_does_not_end_or_repeat_stops(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenization, "_PATIENCE", 0.2)
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + CHATML.replace(
        "%s", WHOLE
    )
    with pytest.raises(UserError, match="is not done with two short messages after"):
        tokenization.ends_in_time(tokenizer)
    tokenizer.chat_template = "{{ strftime_now('%f') }}" + CHATML.replace("%s", WHOLE)
    with pytest.raises(UserError, match="differently each time"):
        tokenization.ends_in_time(tokenizer)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{% for a in range(10**9) %}{% endfor %}", "chat_template: OverflowError: Range too big"),
        ("{{ m['content'] * 10**11 }}", "chat_template: it needs too much memory"),
        ("{{ m['content'] + 1 }}", "chat_template: TypeError"),
    ],
)
def test_a_template_that_explodes_or_fails_stops(tokenizer, body, said):
    before = resource.getrlimit(resource.RLIMIT_AS)
    tokenizer.chat_template = CHATML.replace("%s", body)
    with pytest.raises(UserError, match=said):
        tokenization.ends_in_time(tokenizer)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_few_huge_weights_stop_and_usual_ones_do_not():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.LayerNorm(40), torch.nn.Embedding(50, 16))
    with torch.no_grad():
        model[2].weight[7] *= 300  # an outlier, as large models have some
        model[0].weight[:, :39] *= 1e-20  # and weights that have decayed
    guards.broken(model)
    with torch.no_grad():
        model[1].weight[3] = 1e30
    with pytest.raises(UserError, match=r"times as large as all others of their tensor: 1\.weight \(1 of 40, up to 1e\+30\)"):
        guards.broken(model)


def test_an_accumulation_that_no_epoch_fills_is_told():
    def told(steps, rows):
        given = SimpleNamespace(train_batch_size=8, world_size=1, gradient_accumulation_steps=steps)
        return guards.accumulates(given, rows)

    assert told(1, 3) == told(4, 25) == told(4, 0) == ""
    assert "5 batches are more than the 4 of an epoch" in told(5, 25)


def test_a_tokenizer_that_is_not_the_parents_stops(tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )
    with pytest.raises(UserError) as error:
        guards.fits_parent(model, tokenizer, 64)
    assert error.value.faults == (
        "max_length: 64 does not fit the parent, which has 32 positions",
        "--parent: the tokenizer has 260 tokens, but the model only 100 embeddings; they don't belong together",
    )


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("messages", [[f"q{at}", "I do not know."] for at in range(30)], "30 of 30 rows have the same answer"),
        ("messages", [[f"q{at}", "nan" if at % 2 else f"a{at}"] for at in range(30)], "15 of 30 rows are answered by a placeholder"),
        ("messages", [[f"q{at}", f"a{at} \ufffd"] for at in range(30)], "30 of 30 rows hold the replacement character"),
        ("messages", [[f"q{at}", f"a{at} GrÃ¼ÃŸe"] for at in range(30)], "30 of 30 rows look like UTF-8"),
    ],
)  # fmt: skip
def test_rows_that_can_mean_nothing_are_refused(kind, rows, said):
    from pipeline.data import doubts, types

    roles = ("user", "assistant")
    made = [{"messages": [{"role": role, "content": text} for role, text in zip(roles, row, strict=True)]} for row in rows]
    with pytest.raises(UserError, match=said):
        doubts.of(made, types.load(kind))
    well = [{"messages": [{"role": role, "content": f"{role} {at}"} for role in roles]} for at in range(3000)]
    assert len(doubts.of(made + well, types.load(kind))) <= 1  # a few of many are told, or pass


def test_labels_in_another_case_are_told_however_many():
    from pipeline.data import doubts, types

    rows = [{"text": f"t{at}", "label": ("Glad", "glad", "sad")[at % 3]} for at in range(30)]
    assert doubts.of(rows, types.load("labels")) == ["10 of 30 rows have the label 'Glad', which looks like a slip in 'glad'"]


def test_one_name_stands_for_a_list_of_a_library_and_of_no_option_of_ours():
    from pipeline.system import config
    from pipeline.training.adapter import AdapterOptions

    assert config.check({"loss_type": "ipo"}, {}, AdapterOptions, "trl.DPOConfig") == []
    assert config.check({"loss_type": 3}, {}, AdapterOptions, "trl.DPOConfig")


def told(kind, rows):
    """What is said of rows, whether it is a warning or a refusal."""
    from pipeline.data import doubts, types

    try:
        return " / ".join(doubts.of(rows, types.load(kind)))
    except UserError as error:
        return " / ".join(error.faults)


def chat(answer, question="What of {at}?"):
    turns = ("user", "assistant")
    return [
        {
            "messages": [
                {"role": role, "content": text.format(at=at)} for role, text in zip(turns, (question, answer), strict=True)
            ]
        }
        for at in range(30)
    ]


def pair(chosen, rejected):
    return [
        {"prompt": [{"role": "user", "content": f"Q{at}"}]}
        | {side: [{"role": "assistant", "content": text.format(at=at)}] for side, text in (("chosen", chosen), ("rejected", rejected))}
        for at in range(30)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("messages", chat("Well, {at} &amp;quot;so&quot;"), "HTML entities"),
        ("messages", chat("<b>{at}</b> &amp; more"), ""),
        ("messages", chat("One {at}.\\nTwo."), "escaped twice"),
        ("messages", chat(r"It is $\nabla {at}$, see C:\new"), ""),
        ("messages", chat("print('{at}\\n')\nreturn"), ""),
        ("messages", chat("{at} \x00"), "control characters"),
        ("messages", chat("What of {at}?"), "answered by the question itself"),
        ("messages", chat("#REF!", "Sum {at}?") + chat("{at}"), "a placeholder"),
        ("messages", chat("{at:08}"), ""),
        ("messages", chat("It was a long day in the wood of {at:03}"), "of exactly 36 characters"),
        ("messages", chat("It was number {at:03} and a long day."), ""),
        ("text", [{"text": str(at * 7919)} for at in range(30)], "nothing but a number"),
        ("text", [{"text": f"{at} + 1 = {at + 1}"} for at in range(30)], ""),
        ("preference", pair("Yes {at}.", "No."), "have the same rejected answer"),
        ("preference", pair("Yes.", "No {at}."), "have the same chosen answer"),
        ("preference", pair("Q{at} Yes.", "Q{at} No."), "begin with the prompt itself"),
        ("preference", pair("Yes {at}.", "No {at}."), ""),
        ("labels", [{"text": f"t{at // 2}", "label": "ab"[at % 2]} for at in range(30)], "the text of another row and another label"),
        ("labels", [{"text": f"t{at}", "label": f"row{at}"} for at in range(30)], "a label that no other row has"),
        ("labels", [{"text": "t", "label": "ab"[at % 2]} for at in range(30)], "have the same text"),
        ("labels", [{"text": f"t{at}", "label": ("happy1", "happy2", "unhappy1")[at % 3]} for at in range(30)], ""),
        ("tags", [{"tokens": ["a"], "tags": ["O"]} for _ in range(30)], "no tag but 'O'"),
        ("tags", [{"tokens": ["a", "b"], "tags": ["O", "B-PTE" if at == 3 else "B-PET"]} for at in range(30)], "a slip in 'B-PET'"),
        ("similarity", [{"text": f"a{at}", "text_pair": "b", "score": 1.0} for at in range(30)], "have the same score"),
        ("similarity", [{"text": f"a{at}", "text_pair": "b", "score": 500.0 if at == 3 else at % 5} for at in range(30)], "two scales"),
        ("similarity", [{"text": f"a{at}", "text_pair": "b", "score": at / 6} for at in range(30)], ""),
        ("translation", [{"source": f"s{at}", "target": "the"} for at in range(30)], "have the same answer"),
        ("translation", [{"source": f"s{at}", "target": f"S{at}"} for at in range(30)], "answered by the question itself"),
        ("feedback", [{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": f"a{at}"}], "label": at != 3} for at in range(60)], "only 1 are down"),
    ],
)  # fmt: skip
def test_what_rows_can_hardly_mean_is_told_and_nothing_else(kind, rows, said):
    found = told(kind, rows)
    assert said in found if said else found == "", found


def test_an_option_that_is_read_with_another_one_alone_is_refused():
    from pipeline.system import config
    from pipeline.training.adapter import AdapterOptions

    def faults(**values):
        return config.check(values, {}, AdapterOptions, "trl.RLOOConfig")

    assert "is read only with use_vllm: true" in faults(vllm_mode="server")[0]
    assert "an optim of Adam's kind" in faults(adam_beta2=0.9, optim="sgd")[0]
    assert faults(adam_beta2=0.9) == faults(adam_beta2=0.9, optim="adamw_torch_fused") == []
    assert "a node is measured when it is done" in faults(per_device_eval_batch_size=2)[0]
    assert "can't be set here" in faults(hub_model_id="a/b")[0]


def test_a_tokenizer_of_another_script_is_refused(tokenizer):
    class Unknown:
        unk_token, unk_token_id, eos_token_id, bos_token_id, all_special_ids = "[UNK]", 1, None, None, [0, 1, 2]

    def rows(*ids):
        return [{"input_ids": [2, *ids, 0], "labels": [0]}] * 30

    assert guards.reads(rows(5, 6, 7, 8, 1, 9), Unknown) == ""
    assert "33% of the first rows' tokens are unknown" in guards.reads(rows(5, 6, 1), Unknown)
    with pytest.raises(UserError, match=r"100% of the first rows' tokens are unknown to the tokenizer \(\[UNK\]\)"):
        guards.reads(rows(1, 1), Unknown)
    assert guards.reads(rows(1, 1), tokenizer) == ""  # whose bytes know all


def test_a_norm_of_zeros_is_told_where_it_lets_nothing_through():
    import torch

    class OnePlus(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x * (1 + self.weight)

    model = torch.nn.Sequential(torch.nn.RMSNorm(4), OnePlus())
    assert guards.empty(model) == ""
    torch.nn.init.zeros_(model[0].weight)
    assert guards.empty(model).endswith("nothing but zeros or one number: 0.weight")
    torch.nn.init.constant_(model[1].weight, -1.0)
    assert guards.empty(model).endswith("nothing but zeros or one number: 0.weight, 1.weight")


def test_a_matrix_of_one_number_and_one_without_a_shard_are_told():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(16, 8), *(torch.nn.Linear(8, 16) for _ in range(4)))
    with torch.no_grad():
        model[0].weight[8:] = 0  # tokens that nobody uses
        assert guards.empty(model) == guards.half_filled(model) == ""
        model[1].weight.fill_(0.02)
        model[2].weight[:8] = 0
        model[3].weight[:, 4:] = model[3].weight[:, :4]
    assert guards.empty(model) == "1 matrices or norms hold nothing but zeros or one number: 1.weight"
    assert guards.half_filled(model).startswith(
        "2 matrices are zeros in a quarter of their rows or columns, or hold one half twice: 2.weight, 3.weight;"
    )


def test_texts_without_their_begin_token_and_targets_without_an_end_are_told():
    tokenizer = SimpleNamespace(cls_token_id=1, cls_token="[CLS]", eos_token_id=2, eos_token="</s>")

    def told(ids, labels, writes=False):
        return guards.framed([{"input_ids": ids, "labels": labels}] * 3, tokenizer, writes)

    assert told([1, 5, 6, 2], [5, 6]) == told([1, 5], [5, 2], True) == ""
    assert "no text begins with [CLS]" in told([5, 6], [5])
    assert "begins with [CLS] twice" in told([1, 1, 5], [5])
    with pytest.raises(UserError, match="puts no </s> at the end of a target"):
        told([1, 5], [5, 6], True)


def test_a_layer_that_was_copied_over_another_is_told():
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()) for _ in range(3)))
    model.append(model[0])  # shared, as in ALBERT, which is no copy
    for layer in model[:3]:
        torch.nn.init.ones_(layer[0].bias)
    assert guards.copied(model) == ""
    model[2].load_state_dict(model[1].state_dict())
    assert guards.copied(model) == "1 matrices hold the same weights as those of another layer: 2.0.weight and 1.0.weight"


def test_code_of_a_models_own_is_not_run_and_told():
    model = SimpleNamespace(config=SimpleNamespace())
    assert guards.own_code(model) == ""
    model.config.auto_map = {"AutoConfig": "conf_x.C", "AutoModel": "model_x.M"}
    assert guards.own_code(model).startswith(
        "config.json names code of the model's own (conf_x.py, model_x.py), which is not run"
    )


FAMILIES = {"causal": "", "mlm": "", "denoising": "bart", "span_corruption": "t5", "rtd": "electra"}


@pytest.mark.parametrize("objective", mostly_slow(list(FAMILIES), "causal", "mlm"))
def test_a_parent_of_any_family_with_its_tokens_in_another_order_is_told(tmp_path, objective):
    from tests.conftest import make_quietly
    from tests.zoo import OPTIONS, ROWS
    from tests.zoo.faults.tokens import renumbered

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["pretrain"]))
    more = {"objective": objective, "num_train_epochs": 6, "max_length": 64, "per_device_train_batch_size": 8}
    flags = [word for key, value in (OPTIONS["pretrain"] | more).items() for word in (f"--{key}", str(value))]
    made = tmp_path / "made"
    make_quietly("pretrain", "--output", made, "--data", tmp_path / "rows.jsonl", *flags)

    def judged():
        tokenizer, said = tokenization.load(str(made)), []
        rows = [{"input_ids": tokenizer(row["text"])["input_ids"]} for row in ROWS["finetune"]]
        family, model = parents.pretrained(str(made))
        try:
            parents.knows(family, model, rows, tokenizer, said.append)
        except UserError as error:
            said += error.faults
        return " ".join(said)

    assert judged() == ""
    own = (made / "tokenizer.json").read_text()
    for change, told in {
        lambda words: words[::-1]: "weights and tokenizer don't belong together",
        lambda words: random.Random(1).sample(words, len(words)): "weights and tokenizer don't belong together",
        lambda words: [*words[1:], words[0]]: "moved by 1 " if objective == "causal" else "",
    }.items():
        (made / "tokenizer.json").write_text(own)
        renumbered(change)(SimpleNamespace(model=made))
        assert told in judged()


class Fixed:
    """A causal model that finds one token likely, whatever comes before it."""

    training = False

    def __init__(self, likely, size=300):
        import torch

        self.logits = torch.zeros(size)
        self.logits[likely] = 20.0

    def parameters(self):
        yield self.logits

    def get_input_embeddings(self):
        return type("Embeddings", (), {"weight": self.logits[:, None]})

    def eval(self):
        return self

    def train(self, mode):
        return self

    def __call__(self, input_ids, **_):
        return type("Outputs", (), {"logits": self.logits.expand(1, input_ids.shape[1], -1)})


def test_an_end_of_answers_that_the_parent_finds_unlikely_is_told():
    rows = [{"prompt_ids": [5, 6], "chosen_ids": [7, 9], "rejected_ids": [8, 9]}] * 4
    assert parents.ends_answers(Fixed(9), rows) == ""
    assert "less likely (20.00 nats) than guessing among its 300 tokens (5.70)" in parents.ends_answers(Fixed(7), rows)
    assert parents.ends_answers(Fixed(7), [{"input_ids": [1, 2], "labels": [1, 2]}]) == ""


def test_swapped_pairs_are_told_and_answers_of_letters_that_nobody_has_seen_are_not():
    rows = [{"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 8]}] * 16
    words, letters = (SimpleNamespace(convert_ids_to_tokens=lambda ids, one=one: [one] * len(ids)) for one in ("Ġcat", "ð"))
    assert "are the columns swapped?" in parents.swapped(lambda: Fixed(8), rows, words)
    assert parents.swapped(lambda: Fixed(8), rows, letters) == "", "emoji, say, are unlikely on whichever side they are"
    assert parents.swapped(lambda: Fixed(7), rows, words) == ""


def test_what_is_asked_before_and_after_training_has_the_noise_of_training():
    import torch

    from pipeline.training import outcome

    embeddings = torch.nn.Embedding(8, 4).eval()
    model = SimpleNamespace(get_input_embeddings=lambda: embeddings)
    found = {}
    for alpha in (None, 5.0, 5.0):
        with outcome._noise(SimpleNamespace(model=model, args=SimpleNamespace(neftune_noise_alpha=alpha))):
            found.setdefault(alpha, []).append(embeddings(torch.arange(8)[None]).detach())
    assert torch.equal(*found[5.0])
    assert (found[5.0][0] - found[None][0]).abs().max() <= 5 / (8 * 4) ** 0.5
    assert not torch.equal(found[5.0][0], found[None][0])
    assert not embeddings._forward_hooks


def test_prompts_are_asked_as_answers_are_shown(tokenizer):
    rows = [{"prompt": TALK["messages"][:1]}]
    tokenizer.chat_template = CHATML.replace("%s", "{{ m['content'] }}<|im_end|>")
    shown.asked(rows, tokenizer)
    tokenizer.chat_template = CHATML.replace("%s", "{{ m['contents'] }}<|im_end|>")
    with pytest.raises(UserError, match="drops or changes what the user says"):
        shown.asked(rows, tokenizer)
    tokenizer.chat_template = CHATML.replace("%s", "{{ m['content'] }}<|im_end|>").replace("add_generation_prompt", "false")
    with pytest.raises(UserError, match="add_generation_prompt adds nothing"):
        shown.asked(rows, tokenizer)
