"""Chat templates that show in training what generation does not ask for."""

from pathlib import Path

from tests.zoo import fault, named

CHATML = (Path(__file__).parents[3] / "pipeline" / "models" / "templates" / "chatml.jinja").read_text()
TAIL = CHATML.partition("{%- if add_generation_prompt -%}")[0]


def edited(old, new):
    assert old in CHATML
    return CHATML.replace(old, new)


@fault("sft dpo kto reward", "chat_template|generation prompt")
def another_generation_prompt(setup):
    """Training shows the assistant's name and a colon, generation asks with the name alone."""
    setup.template = TAIL + "{%- if add_generation_prompt -%}{{- '<|im_start|>bot: ' -}}{%- endif -%}"


@fault("sft dpo kto", "chat_template|generation prompt")
def no_generation_prompt(setup):
    """The template was shortened, and add_generation_prompt went with the rest."""
    setup.template = TAIL


@fault("sft", "chat_template")
def the_users_text_as_a_target(setup):
    """The generation tags were put around every message."""
    setup.template = edited("{{- message['content'] + '<|im_end|>' -}}\n{%- endif -%}", "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}\n{%- endif -%}")  # fmt: skip


@fault("sft dpo kto reward", "chat_template")
def the_users_text_dropped(setup):
    """A typing error in a key: Jinja renders what is not there as nothing."""
    setup.template = edited("{%- else -%}\n{{- message['content']", "{%- else -%}\n{{- message['contents']")


@fault("sft dpo kto reward", "chat_template")
def the_assistants_text_dropped(setup):
    """The same typing error on the assistant's side."""
    setup.template = edited("{%- generation -%}\n{{- message['content']", "{%- generation -%}\n{{- message['contents']")


@fault("sft", "chat_template|role system, which the chat template leaves out")
def the_system_prompt_dropped(setup):
    """The template knows two roles, and rows begin with a third."""
    setup.template = "{{- bos_token -}}{%- for message in messages if message['role'] != 'system' -%}" + CHATML.partition("{%- for message in messages -%}")[2]  # fmt: skip
    setup.messages(lambda _, turns: [{"role": "system", "content": "You know all the animals."}, *turns])


@fault("sft", "end token|stop")
def the_end_token_outside_the_tags(setup):
    """The generation tags close before the end token."""
    setup.template = edited("{{- message['content'] + '<|im_end|>' -}}\n{%- endgeneration -%}", "{{- message['content'] -}}\n{%- endgeneration -%}{{- '<|im_end|>' -}}")  # fmt: skip


@fault("sft dpo kto", "puts no special token|end token|stop|no sampled answer would end|does not end with a special token")
def no_end_token(setup):
    """The end of a turn is a line break, as in many prompts that were written by hand."""
    setup.template = CHATML.replace("<|im_end|>", "")


@fault("sft", "begin token|twice|chat_template")
def two_begin_tokens(setup):
    """The template begins with the begin token, and so did the one that it was pasted into."""
    setup.template = "{{- bos_token -}}" + CHATML


@fault("sft dpo", "chat_template")
def an_upper_case_template(setup):
    """A filter that was meant for the role also changes the text."""
    setup.template = CHATML.replace("message['content']", "message['content'] | upper")


@fault("sft", "chat_template")
def only_the_last_turn(setup):
    """The template of a model with a memory of its own shows only the last two messages."""
    setup.template = CHATML.replace("in messages -%}", "in messages[-2:] -%}")
    setup.messages(lambda _, turns: [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}, *turns])


@fault("sft", "chat_template")
def a_template_of_the_clock(setup):
    """The template prints the time, so training, resuming and generation see different prompts."""
    setup.template = edited("{{- bos_token -}}", "{{- bos_token + strftime_now('%H:%M:%S.%f') -}}")


@fault("sft", "dropped: .*refused by the chat template")
def a_template_that_raises(setup):
    """The template refuses two user turns in a row, which some rows have."""
    setup.template = "{%- if messages | length > 2 -%}{{ raise_exception('roles must alternate') }}{%- endif -%}" + CHATML
    setup.messages(lambda at, turns: [turns[0], *turns] if at == 80 else turns)


@fault("sft", "chat_template")
def a_template_that_never_ends(setup):
    """A loop over a range that should have been a number of turns."""
    setup.template = "{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}" + CHATML


@fault("sft", "chat_template")
def a_template_with_a_syntax_error(setup):
    """An endif was lost in an edit."""
    setup.template = CHATML.replace("{%- endif -%}", "", 1)


@fault("sft", "chat_template|role")
def every_turn_the_same_role(setup):
    """The role in the template is a constant that was meant as an example."""
    setup.template = CHATML.replace("message['role'] + '\\n'", "'user' + '\\n'")


add = named(__name__)


def tmpl(text):
    return lambda s: setattr(s, "template", text)


BAD = (
    CHATML.replace("{%- if add_generation_prompt %}", "{%- if false %}")
    if "{%- if add_generation_prompt %}" in CHATML
    else CHATML.replace("add_generation_prompt", "xx")
)
add(
    "rlhf self_train",
    "add_generation_prompt adds nothing",
    "no generation prompt",
    "The template was shortened, and add_generation_prompt went with the rest.",
    tmpl(BAD),
)
add(
    "rlhf self_train",
    "chat_template: ",
    "text dropped",
    "A typing error in a key: Jinja renders what is not there as nothing.",
    tmpl(CHATML.replace("message['content']", "message['contents']")),
)
add(
    "rlhf self_train",
    "after an answer",
    "no end",
    "The end of a turn was left out of the template.",
    tmpl(CHATML.replace("<|im_end|>", "")),
)
add(
    "sft",
    "chat_template: ",
    "turns reversed",
    "A filter that was meant for the newest turns turns all of them around.",
    tmpl(
        "{%- for message in messages | reverse -%}" + CHATML.split("-%}", 1)[1]
        if CHATML.startswith("{%- for")
        else CHATML.replace("in messages", "in messages | reverse")
    ),
)
add(
    "sft",
    "generation asks",
    "a prompt in generation alone",
    "A system prompt was put into the branch for generation.",
    tmpl("{%- if add_generation_prompt %}Be brief. {% endif %}" + CHATML),
)
