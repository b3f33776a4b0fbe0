"""Speech: corpora, spectrograms, voices that speak and align."""

from diffeo.apps.speech.audio import Mel as Mel
from diffeo.apps.speech.audio import from_mel as from_mel
from diffeo.apps.speech.audio import read_audio as read_audio
from diffeo.apps.speech.audio import to_mel as to_mel
from diffeo.apps.speech.audio import write_audio as write_audio
from diffeo.apps.speech.corpus import Clip as Clip
from diffeo.apps.speech.corpus import check_corpus as check_corpus
from diffeo.apps.speech.corpus import encode_text as encode_text
from diffeo.apps.speech.corpus import letters as letters
from diffeo.apps.speech.corpus import mels_of as mels_of
from diffeo.apps.speech.corpus import read_corpus as read_corpus
from diffeo.apps.speech.corpus import symbols_of as symbols_of
from diffeo.apps.speech.voice import Spoken as Spoken
from diffeo.apps.speech.voice import Voice as Voice
from diffeo.apps.speech.voice import align as align
from diffeo.apps.speech.voice import durations_of as durations_of
from diffeo.apps.speech.voice import join as join
from diffeo.apps.speech.voice import say as say
